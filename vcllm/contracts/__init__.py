"""What the services say to each other and what is stored: pydantic only, no I/O."""
