"""The compressive video tokenizer."""
