"""What an example is made of: a text, a prompt with its answer, a chat, a preference pair."""
