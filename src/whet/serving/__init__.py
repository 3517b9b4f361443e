"""A trained model, answering."""
