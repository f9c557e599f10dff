from bpe.cli import main

raise SystemExit(main())
