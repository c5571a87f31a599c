"""How many groups a version's images are of"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("dataset_versions", sa.Column("num_groups", sa.Integer(), nullable=True))


def downgrade() -> None:
    op.drop_column("dataset_versions", "num_groups")
