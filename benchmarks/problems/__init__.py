"""What the surrogates are measured on: frozen descriptions of problems, each with its search space and its budget."""

from problems.catalogue import find, names
from problems.problem import MissingLibrary, Objective, Problem

__all__ = ["MissingLibrary", "Objective", "Problem", "find", "names"]
