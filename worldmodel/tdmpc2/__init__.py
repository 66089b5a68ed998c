"""TD-MPC2's latent dynamics."""
