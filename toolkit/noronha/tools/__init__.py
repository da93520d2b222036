"""What notebooks import: where their files are, publishing what they made, serving what they load."""
