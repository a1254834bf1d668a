"""What teacher and trainer agree on: tokens, wire, files, configuration, errors.

Depends on numpy, protobuf and pydantic, never on torch, so that neither side
drags in the other's stack. Imports go one way: `shared` <- `teacher_server`,
`shared` <- `student_trainer`.
"""

__version__ = "0.2.0"

DISTRIBUTION = "lmtad-hoser-distill"
"""What it is installed by; and how the two packages know this `shared` from another one."""
