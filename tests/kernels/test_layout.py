"""tk/layout.h on the host: bijections, bank conflicts and descriptor addresses, exhaustively."""

import subprocess


def test_every_law_of_the_layouts_holds(host_program):
    program = host_program("layout", "tests/kernels/layout_main.cpp", flags=("-O2",))
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    checks = int(done.stdout.split()[0])
    print(done.stdout)
    assert checks > 10_000_000
