# SPDX-License-Identifier: Apache-2.0
"""All programs, by name.  A file per family; a program is one entry of its PROGRAMS."""

from tests.matrix.programs import (
    brokers,
    compiled,
    databases,
    forking,
    interpreters,
    names,
    pypi,
    servers,
    shells,
    web,
)

FAMILIES = (
    databases,
    brokers,
    web,
    names,
    servers,
    interpreters,
    pypi,
    compiled,
    shells,
    forking,
)
PROGRAMS = {program.name: program for family in FAMILIES for program in family.PROGRAMS}
