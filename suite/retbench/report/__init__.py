"""Tables, figures, claims and the report, from the records that runs left on disk; nothing here imports torch.

Data flows one way: records -> selection (newest comparable ones) -> observations -> points with intervals, and
comparisons with the reference -> tables, figures, findings -> page. The packages `claims`, `figures`, `tables` and
`findings` each make one part of the page; the modules of this folder are the steps before them, and the page.
"""
