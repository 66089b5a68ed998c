"""Pictures of learning curves and of what they say over several tasks."""
