from moecap.cli import main

raise SystemExit(main())
