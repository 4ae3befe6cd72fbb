"""Printed numbers, claims and datasheets as data, with source, conditions and doubts. Nothing here is measured."""
