"""Tables, figures, claims and the report, from the records that runs left on disk; nothing here imports torch.

Data flows one way: records -> selection (newest comparable ones) -> observations -> points with intervals, and
comparisons with the reference -> tables, figures, findings -> page.
"""
