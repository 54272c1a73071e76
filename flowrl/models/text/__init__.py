"""What language models of both families share: prompts, networks, checks and exports."""
