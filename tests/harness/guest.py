"""Run a module of Python on a real kernel that has TLS: `python -m harness.guest pytest [OPTIONS]`.

The machine that runs the tests mostly has no kernel TLS, and none may be loaded. So another kernel
is booted as a process of this machine: User Mode Linux, from Debian. Its root directory is this
machine's, read-only, so that it has the same Python and the same sources; what it may write to is
memory, and one directory of ours for the outcome. Its network is a loopback interface of its own.

Environment: GUEST_KERNEL is another kernel to boot, GUEST_MODULES the directory of its modules,
GUEST_MEMORY its memory (3G), GUEST_SECONDS its time.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
SECONDS: Final = 1500
_BEGINS: Final = "guest: begins"
_POWER_OFF: Final = 0x4321FEDC  # reboot(2)
_ENDS: Final = "guest: ends"
_INIT: Final = r"""#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mkdir -p /dev/shm
ln -sf /proc/self/fd /dev/fd
for each in /tmp /run /var/tmp /dev/shm; do mount -t tmpfs -o mode=1777 tmpfs $each; done
chmod 755 /run
mkdir -p /tmp/outcome /tmp/modules/lib
mount -t hostfs none /tmp/outcome -o {outcome}
# Where the sources are in a directory that has just been covered, they are put there again.
[ -d {root}/tests ] || {{ mkdir -p {root} && mount -r -t hostfs none {root} -o {root}; }}
# The kernel loads modules by a program, which looks for them where this machine has none.
ln -s {modules} /tmp/modules/lib/modules
printf '#!/bin/sh\nexec /sbin/modprobe -d /tmp/modules "$@"\n' >/tmp/modules/modprobe
chmod 755 /tmp/modules/modprobe
echo /tmp/modules/modprobe >/proc/sys/kernel/modprobe
ip link set lo up
cd {root}
echo '{begins}'
echo "guest: Linux $(uname -r), $(sed -n 's/^model name.*: //p' /proc/cpuinfo)"
export PYTHONPATH={root}/tests PYTHONDONTWRITEBYTECODE=1 TEST_IN_GUEST=1
export HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis {settings}
{python} -m {arguments} 2>&1
echo $? >/tmp/outcome/status
sync
echo '{ends}'
{python} -c 'import ctypes; ctypes.CDLL(None).reboot({power_off})'
"""


def kernel() -> tuple[str, Path]:
    """Give the kernel to boot, and where its modules are."""
    modules = os.environ.get("GUEST_MODULES", "/usr/lib/uml/modules")
    return os.environ.get("GUEST_KERNEL", "linux.uml"), Path(modules)


def run(arguments: list[str], settings: dict[str, str]) -> int:
    """Boot, run the module inside, and give its exit status; what it prints is printed."""
    program, modules = kernel()
    with tempfile.TemporaryDirectory(prefix="handfast-guest-") as directory:
        outcome = Path(directory, "outcome")
        outcome.mkdir()
        script = Path(directory, "init")
        script.write_text(
            _INIT.format(
                outcome=outcome,
                modules=modules,
                root=ROOT,
                begins=_BEGINS,
                ends=_ENDS,
                settings=shlex.join(f"{name}={value}" for name, value in settings.items()),
                python=sys.executable,
                power_off=_POWER_OFF,
                arguments=shlex.join(arguments),
            )
        )
        script.chmod(0o755)
        _boot(program, script)
        status = outcome / "status"
        return int(status.read_text()) if status.exists() else 1


def _boot(program: str, script: Path) -> None:
    """Boot with `script` as the first process, and print what that prints until the end."""
    command = [
        *(program, "rootfstype=hostfs", "rootflags=/", "ro", "quiet", "loglevel=1"),
        *(f"mem={os.environ.get('GUEST_MEMORY', '3G')}", f"init={script}", "con=null"),
        *("con0=null,fd:1", "random.trust_cpu=on"),
    ]
    seconds = os.environ.get("GUEST_SECONDS", str(SECONDS))
    with subprocess.Popen(
        ["timeout", "-k", "5", seconds, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "TMPDIR": _memory_directory()},
    ) as guest:
        assert guest.stdout is not None
        begun = ended = False
        for line in guest.stdout:
            text = line.decode(errors="replace").rstrip("\r\n")
            ended = ended or text == _ENDS
            if begun and not ended:
                print(text, flush=True)
            begun = begun or text == _BEGINS
        code = guest.wait()
    if not begun:
        print(f"guest: {program} did not come up (exit status {code})", file=sys.stderr)


def _memory_directory() -> str:
    """Where the guest's memory is a file: in memory, if this machine has such a place."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else tempfile.gettempdir()  # noqa: S108


if __name__ == "__main__":
    inside = {name: value for name, value in os.environ.items() if name.startswith("TEST_")}
    sys.exit(run(sys.argv[1:], inside))
