#!/usr/bin/env bash
# The whole life of a model, from its definition to a prediction. Run it from this folder: ./script.sh
set -euo pipefail

nha="nha --debug --pretty --skip-questions"

# What the model looks like: one file of its own, and two of each dataset
$nha model new --name iris-clf --desc "Iris flower classifier" \
    --model-file '{"name": "clf.pkl", "required": true, "desc": "Classifier saved as pickle", "max_mb": 1}' \
    --data-file '{"name": "measures.csv"}' \
    --data-file '{"name": "species.csv"}'

# The flowers: 150 rows in each file
$nha ds new --name iris-data-v0 --model iris-clf --details '{"extraction_date": "2019-04-01"}' --path ./datasets/

# The project, and a build of it from this folder
$nha proj new --name botanics --desc "An experiment in the field of botany" \
    --git-repo 'https://my_git_server/botanics' --home-dir '.' --model iris-clf
$nha proj build --from-here
nha bvers list

# A training, which publishes a version of the model
$nha train new --name experiment-v1 --nb notebooks/train --params '{"gamma": 0.001, "kernel": "poly"}' \
    --dataset iris-clf:iris-data-v0
nha movers list

# A deployment of that version, on a port of its own and behind the router
$nha depl new --name homolog --nb notebooks/predict --port 30050 --movers iris-clf:experiment-v1 --n-tasks 1

# Predictions: {"result": "setosa", ...}
curl -sS -X POST --data '[1,2,3,4]' http://127.0.0.1:30050/predict
echo
curl -sS -X POST -H 'Content-Type: application/JSON' --data '[1,2,3,4]' \
    "http://127.0.0.1:30080/predict?project=botanics&deploy=homolog"
echo
