"""${message}"""

import sqlalchemy as sa
from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    ${upgrades if upgrades else "raise RuntimeError('an empty migration')"}


def downgrade() -> None:
    ${downgrades if downgrades else "raise RuntimeError('an empty migration')"}
