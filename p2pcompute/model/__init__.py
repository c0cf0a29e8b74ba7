"""The nouns of the product, frozen. Imports nothing of ours and nothing heavy."""
