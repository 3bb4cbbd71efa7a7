"""How much of timm's registry converts: one bounded trial per architecture, a table, a page.

`registry` lists what there is, `trial` tries one architecture in a process of its own,
`bounded` keeps such processes within memory and time, `sweep` runs many and can be resumed, `rows`
is the table as plain data, `pages`, `browser_page` and `heat_map` show it.
"""
