"""Rewards: one file each for ours, and the list of those that a recipe can name, TRL's among them."""

from entropy_rft.rewards.accuracy import Accuracy
from entropy_rft.rewards.catalogue import build_rewards, reward_names
from entropy_rft.rewards.pear import PEARReward

__all__ = ["Accuracy", "PEARReward", "build_rewards", "reward_names"]
