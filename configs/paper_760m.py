"""The paper's 760M model (Table 6): 24 blocks, 30B tokens; configs/paper.py tells the rest.

    python train.py --config=configs/paper_760m.py:titans,grm

Parameters: 757M (linear), 759M (swla), 787M (dla), 788M (titans), 757M (transformer).
For a pod; 64 TPU v5p chips hold a step of 0.5M tokens. Not yet run at this size.
"""

from configs.paper import paper_config


def get_config(experiment: str = "titans,grm"):
    return paper_config(
        experiment,
        dim=1536,
        num_layers=24,
        num_heads=16,
        mlp_dims={6: 3328, 5: 3840, 4: 4352},
        learning_rate=1.25e-3,
        tokens=30e9,
    )
