"""Benchmarks: what is timed (`spec`), how (`timer`), where (`facts`, `roofs`), and what comes of it (`rows`, `report`,
`plots`). `tkpy bench` is the command; docs/benchmarks.md says how to read a row and how to add one.
"""
