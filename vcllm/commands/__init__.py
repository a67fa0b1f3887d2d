"""The commands of `vcllm`, one file each; all but `up` and `demo` speak HTTP to a running gateway."""
