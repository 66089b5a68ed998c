"""The autoregressive transformer."""
