#!/bin/sh
# Makes the files docker-compose.yml takes its secrets from; one that is there already stays as it is.
#
#     deploy/make_secrets.sh [FOLDER]          ./secrets by default
#
# Compose mounts the files as they are, with their owner and mode, into containers that run as users of their own: so
# each file is readable by all, and the folder by its owner alone. Nobody else on this machine gets as far as a file.
set -eu

folder=${1:-secrets}

random() { head -c 32 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=\n'; }

keep() { # NAME VALUE
    if [ -e "$folder/$1" ]; then
        echo "kept $folder/$1"
        return
    fi
    printf '%s\n' "$2" > "$folder/.$1"
    chmod 0444 "$folder/.$1"
    mv "$folder/.$1" "$folder/$1"
    echo "made $folder/$1"
}

umask 077
mkdir -p "$folder"
chmod 0700 "$folder"

keep postgres_password "$(random)"
keep bo_database_url "postgresql+psycopg://bo:$(cat "$folder/postgres_password")@postgres:5432/bo"
keep redis.conf "requirepass $(random)"
keep bo_broker_url "redis://:$(sed -n 's/^requirepass //p' "$folder/redis.conf")@redis:6379/0"
keep bo_secret_key "$(random)"
keep bo_worker_key "bo_$(random)"
keep bo_monitor_key "bo_$(random)"
keep grafana_password "$(random)"
