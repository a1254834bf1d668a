"""Completion of commands, flags and settings in bash and zsh: a script that is made from the job table.

eval "$(student-trainer --print-completion bash)"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SHELLS = ("bash", "zsh")
ZSH = "autoload -U +X bashcompinit && bashcompinit"
BASH = """{function}() {{
  local words current="${{COMP_WORDS[COMP_CWORD]}}"
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="{commands}"
  else
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  case "${{COMPREPLY[0]}}" in *=) compopt -o nospace 2>/dev/null ;; esac
}}
complete -o default -F {function} {program}
"""
"""Where nothing fits, as after a flag that takes a path, files are offered."""


def script(program: str, shell: str, words: Mapping[str, Sequence[str]]) -> str:
    """What a shell evaluates.

    Args:
        program: what people call it.
        shell: one of `SHELLS`.
        words: of each command, its flags, and its settings with the = that follows them.
    """
    cases = "\n".join(f'      {command}) words="{" ".join(found)}" ;;' for command, found in words.items())
    commands = " ".join([*words, "--help", "--version", "--print-completion"])
    text = BASH.format(function=f"_{program.replace('-', '_')}", commands=commands, cases=cases, program=program)
    return f"{ZSH}\n{text}" if shell == "zsh" else text
