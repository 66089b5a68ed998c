# %% [markdown]
# A tour of mbrl from Python: train a small agent, open its run folder, and look at what it has learned. It takes about
# a minute on one CPU core, on the toy environment: steer a white square onto a green one. Run it cell by cell in an
# editor that knows `# %%`, or whole: `python -m mbrl.tour`. It writes to runs/tour.

# %% Train. Settings are those of `mbrl train`; `mbrl train agent=mbpo --cfg job` prints all of them. The call returns
# when the run has finished. Given again, it resumes an interrupted run, and only opens a finished one.
import mbrl

run = mbrl.train(
    {
        "env": "toy",
        "agent": "mbpo",  # SAC that also learns from short rollouts of a learned ensemble of networks
        "total_env_steps": 1000,
        "checkpoint_every": 500,
        "eval.every": 250,
        "agent.learning_starts": 200,
        "agent.updates_per_step": 1,
        "threads": 1,
        "run_dir": "runs/tour",
    }
)
print(f"results are in {run.folder}")  # later: run = mbrl.load("runs/tour")

# %% The learning curve: a pandas DataFrame of env steps and success in [0, 1]. Reads one small file.
print(run.curve.to_string(index=False))

# %% Play more episodes than training did, on other goals, and film the first four.
evaluation = run.evaluate(episodes=10, seed=1, video=run.folder / "film.gif")
print(evaluation.summary())

# %% Act. The environment is TorchRL's. The policy acts on its TensorDicts, or on observations alone.
env = run.make_env()
rollout = env.rollout(50, run.policy)  # TensorDict [T]
env.close()
print(f"return of {len(rollout)} steps: {float(rollout['next', 'reward'].sum()):.2f}")
action = run.policy({"state": [0.1, 0.5, 0.9, 0.5]})  # agent x, y and goal x, y -> Tensor [2]
print(f"the goal is to the right (action 0 near 1); the action is {action.tolist()}")

# %% The replay, read-only: batches as the agent learned from them.
batch = run.replay.transitions(256)  # TensorDict [256]
print(f"{len(run.replay)} transitions; mean reward {float(batch['next', 'reward'].mean()):.3f}")

# %% Imagine: the policy in the world model, from 64 real states of the replay.
imagined = run.imagine(rollouts=64, horizon=5)  # TensorDict [64, 5]
print(f"imagined reward by step: {imagined['next', 'reward'].mean(0).flatten().tolist()}")

# %% How good is the model? Take real actions in it, and compare the predicted states with the real ones.
real = run.replay.sequences(64, 6)  # TensorDict [64, 6]; action[:, t] leads to state[:, t + 1]
predicted = run.imagine(context=real[:, :1], actions=real["action"][:, :-1])
error = (predicted["next", "state"] - real["state"][:, 1:]).abs().mean((0, 2))
print(f"error of the predicted state by step, where the image has side 1: {error.tolist()}")
