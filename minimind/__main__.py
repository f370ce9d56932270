import sys
from minimind.cli import main
sys.exit(main())
