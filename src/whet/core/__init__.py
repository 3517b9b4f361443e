"""What everything else stands on: errors, names, plain values. Standard library only."""
