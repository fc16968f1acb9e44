"""Reports: the HTML report of a run, prompt sheets, figures for papers, cost tables.

May import `evaluation`, `export` and the packages below them. Offers plug-ins nothing.
"""
