"""What a run does with its time: measured first, then chosen, stored as an artifact, and obeyed."""
