from milo_discoveryd.cli import main

main(prog_name="milo-discoveryd")
