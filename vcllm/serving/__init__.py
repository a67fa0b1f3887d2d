"""What the model servers share: which versions are loaded, which one is current, and how a server is run.

Knows the model store and the aliases; knows nothing of attacks, chats or critiques.
"""
