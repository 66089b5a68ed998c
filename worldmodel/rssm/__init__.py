"""DreamerV3's recurrent state-space model."""
