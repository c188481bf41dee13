"""The paper's 1.3B model (Table 6): 18 blocks, 100B tokens; configs/paper.py tells the rest.

    python train.py --config=configs/paper_1b3.py:titans,grm

Parameters: 1255M (linear), 1256M (swla), 1331M (dla), 1332M (titans), 1274M (transformer).
For a pod; 64 TPU v5p chips hold a step of 0.5M tokens. Not yet run at this size.
"""

from configs.paper import paper_config


def get_config(experiment: str = "titans,grm"):
    return paper_config(
        experiment,
        dim=2048,
        num_layers=18,
        num_heads=8,
        mlp_dims={6: 6656, 5: 7424, 4: 8192},
        learning_rate=7e-4,
        tokens=100e9,
    )
