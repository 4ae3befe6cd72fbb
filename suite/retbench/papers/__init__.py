"""What the papers print, as data with source, conditions and doubts. Nothing here is measured, and nothing made up."""
