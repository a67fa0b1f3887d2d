"""The Actor: answers conversations, in the manner of the OpenAI API, with any version in the model store."""
