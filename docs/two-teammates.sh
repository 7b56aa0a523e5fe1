#!/bin/sh
# Ada pays for the teachers; Bob gets what they said, proves it, trains, and gives something back.
#
# Run it in a folder that holds two checkouts, ada/ and bob/, in each of which `dualkd prepare` and
# `dualkd teach` are done. SHELF may be a folder, or as s3://bucket/caches.
set -eu
DATASET=${DATASET:-demo}
SHELF=${SHELF:-$PWD/shelf}
MORE_VIEWS=${MORE_VIEWS:-6}
CLIPS=${CLIPS:-pytorchvideo/x3d_tiny}
CACHE=outputs/$DATASET/cache

echo "# Ada runs the teachers once, and puts the cache on the shelf."
cd ada
dualkd-cache extract --dataset "$DATASET"
dualkd-cache push "$CACHE" "$SHELF" --author Ada

echo "# Bob looks what there is, and takes the logits first: they are small."
cd ../bob
dualkd-cache ls "$SHELF"
dualkd-cache pull "$SHELF" "$CACHE" --fields vit/logits,cnn/logits
dualkd-cache info "$CACHE"

echo "# For the residuals he completes it; he proves some rows against his own videos, and trains."
dualkd-cache pull "$SHELF" "$CACHE"
dualkd-cache verify "$CACHE" --dataset "$DATASET" --recompute 4
dualkd distill --dataset "$DATASET"

echo "# Meanwhile Ada adds views, and Bob the clips of another student. Each pushes what is new."
cd ../ada
dualkd distill --dataset "$DATASET"
dualkd-cache extract --dataset "$DATASET" --views "$MORE_VIEWS"
dualkd-cache push "$CACHE" "$SHELF" --author Ada
cd ../bob
dualkd-cache extract --dataset "$DATASET" --clips "$CLIPS"
dualkd-cache push "$CACHE" "$SHELF" --author Bob

echo "# Now both take what the other has made: they have one cache."
dualkd-cache pull "$SHELF" "$CACHE"
dualkd-cache verify "$CACHE"
cd ../ada
dualkd-cache pull "$SHELF" "$CACHE"
dualkd-cache verify "$CACHE"

echo "# And the students that they trained before are the same, bit for bit."
cmp "outputs/$DATASET/distill/student.safetensors" "../bob/outputs/$DATASET/distill/student.safetensors"
cmp "outputs/$DATASET/distill/baseline.safetensors" "../bob/outputs/$DATASET/distill/baseline.safetensors"
echo "# done"
