"""Rewards: PEAR, and the names by which a recipe asks for it and for TRL's own."""

from entropy_rft.rewards.named import REWARD_NAMES, build_rewards
from entropy_rft.rewards.pear import PEARReward

__all__ = ["REWARD_NAMES", "PEARReward", "build_rewards"]
