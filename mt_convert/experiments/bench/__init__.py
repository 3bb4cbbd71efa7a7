"""How fast integer networks run, beside what else runs the same network on the same machine.

`contenders/` names all that take part, `timing` takes turns between them, `measure` makes rows of
it, `memory` looks at each alone, `limits` measures what the machine could do at best, `rows` keeps
the numbers, `pages` and `picture` show them, `command` is ``mt-convert bench``.
"""
