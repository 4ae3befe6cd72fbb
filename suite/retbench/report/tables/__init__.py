"""Tables for machines and for people, and their formats."""
