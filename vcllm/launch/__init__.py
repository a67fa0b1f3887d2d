"""All services of VC-LLM on one machine: started together, watched, and stopped together, by their ids."""
