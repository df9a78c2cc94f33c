"""What XLA compiles while a block runs."""

import logging
import re

import jax


class Compilations(logging.Handler):
    """The names of the programs that XLA compiles, from JAX's own log."""

    def __init__(self):
        super().__init__()
        self.names = []

    def emit(self, record):
        if match := re.match(r"Compiling (?:jit\()?([\w<>]+)\)? with", record.getMessage()):
            self.names.append(match[1])

    def __enter__(self):
        self.logger = logging.getLogger("jax")
        self.logger.addHandler(self)
        jax.config.update("jax_log_compiles", True)
        return self

    def __exit__(self, *error):
        jax.config.update("jax_log_compiles", False)
        self.logger.removeHandler(self)
