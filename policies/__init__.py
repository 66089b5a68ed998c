"""Acts and learns; knows no world model and no environment."""
