"""Every column of the project's tables, defined once: name, type, unit, meaning, equation or source.

A table names the columns that it has (:func:`moecap.columns.base.schema`) and takes all else from here. A new column is
one :class:`~moecap.columns.base.Column` in the group that it belongs to, and its name in each table that has it.
"""
