from milo_discoveryd.cli import main

main()
