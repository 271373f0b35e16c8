from rlhf_marl.cli import main

main()
