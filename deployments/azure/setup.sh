#!/bin/sh
# Set up what trainings in Azure need, as often as you like: groups, network, store, gallery, the
# worker's identity, and the least roles for it. docs/azure.md says what each is for.
# Usage: az login; SUBSCRIPTION=… LOCATION=westeurope NAME=aicert STORE=… deployments/azure/setup.sh
# NAME starts the names of all groups; STORE starts those of two storage accounts, which must be
# unique in the world: 3 to 18 lower-case letters and digits. PUBLISHER is who publishes images: the
# object id of a user, by default the one who is signed in, who needs the right to the images' data
# even as the subscription's owner.
set -eu
: "${SUBSCRIPTION:?the id of the subscription: az account show --query id}"
: "${LOCATION:?the region, such as westeurope}"
: "${STORE:?the start of the storage accounts names, 3 to 18 lower-case letters and digits}"
NAME=${NAME:-aicert}
here=$(dirname "$0")
python=${PYTHON:-python3}
sub=/subscriptions/$SUBSCRIPTION
az account set --subscription "$SUBSCRIPTION"
say() { printf '\n== %s\n' "$*"; }

say "providers"
for provider in Compute DevTestLab ManagedIdentity Network Storage; do
    az provider register --namespace "Microsoft.$provider" --wait
done

say "groups: $NAME for what stays, $NAME-runs for the machines of runs and nothing else"
az group create --name "$NAME" --location "$LOCATION" --output none
az group create --name "$NAME-runs" --location "$LOCATION" --output none

say "network: machines get out to fetch their inputs; only the worker's subnet gets in"
az network nsg create --resource-group "$NAME" --name "$NAME-runs" --output none
az network nsg rule create --resource-group "$NAME" --nsg-name "$NAME-runs" --name worker \
    --priority 100 --direction Inbound --access Allow --protocol Tcp \
    --source-address-prefixes 10.20.0.0/24 --destination-port-ranges 8443 --output none
az network nsg rule create --resource-group "$NAME" --nsg-name "$NAME-runs" --name nobody-else \
    --priority 200 --direction Inbound --access Deny --protocol '*' \
    --source-address-prefixes '*' --destination-port-ranges '*' --output none
az network public-ip create --resource-group "$NAME" --name "$NAME-out" --sku Standard \
    --location "$LOCATION" --output none
az network nat gateway create --resource-group "$NAME" --name "$NAME-out" \
    --public-ip-addresses "$NAME-out" --location "$LOCATION" --output none
# Made once: made again it would lose its subnets.
az network vnet show --resource-group "$NAME" --name "$NAME" --output none 2>/dev/null ||
    az network vnet create --resource-group "$NAME" --name "$NAME" --location "$LOCATION" \
        --address-prefixes 10.20.0.0/16 --output none
# Both subnets need the gateway: Azure gives new networks no other way out.
az network vnet subnet create --resource-group "$NAME" --vnet-name "$NAME" --name worker \
    --address-prefixes 10.20.0.0/24 --nat-gateway "$NAME-out" --output none
az network vnet subnet create --resource-group "$NAME" --vnet-name "$NAME" --name runs \
    --address-prefixes 10.20.16.0/20 --network-security-group "$NAME-runs" \
    --nat-gateway "$NAME-out" --output none

say "stores: ${STORE}certs for certificates, ${STORE}images for images alone"
for account in "${STORE}certs" "${STORE}images"; do
    az storage account create --resource-group "$NAME" --name "$account" --location "$LOCATION" \
        --sku Standard_LRS --kind StorageV2 --min-tls-version TLS1_2 \
        --https-only true --allow-blob-public-access false --output none
done
# Nobody opens the first with a key. The second's keys Azure itself asks for when it makes images.
az storage account update --resource-group "$NAME" --name "${STORE}certs" \
    --allow-shared-key-access false --output none
az storage container-rm create --resource-group "$NAME" --storage-account "${STORE}certs" \
    --name certificates --output none
az storage container-rm create --resource-group "$NAME" --storage-account "${STORE}images" \
    --name images --output none

say "gallery"
az sig create --resource-group "$NAME" --gallery-name "$NAME" --location "$LOCATION" --output none

say "the worker's identity"
az identity create --resource-group "$NAME" --name "$NAME-worker" --location "$LOCATION" \
    --output none
worker=$(az identity show --resource-group "$NAME" --name "$NAME-worker" \
    --query principalId --output tsv)
publisher=${PUBLISHER:-$(az ad signed-in-user show --query id --output tsv)}
client=$(az identity show --resource-group "$NAME" --name "$NAME-worker" \
    --query clientId --output tsv)

say "roles"
"$python" "$here/roles.py" "$sub" | while IFS= read -r role; do
    az role definition create --role-definition "$role" --output none 2>/dev/null ||
        az role definition update --role-definition "$role" --output none
done
group=$sub/resourceGroups/$NAME
give() {
    # A role that was made a moment ago is not known everywhere yet.
    for wait in 5 10 20 40 60 0; do
        az role assignment create --assignee-object-id "${3:-$worker}" \
            --assignee-principal-type "${4:-ServicePrincipal}" \
            --role "$1" --scope "$2" --output none && return
        sleep "$wait"
    done
    return 1
}
give "aicert looker" "$sub"
give "aicert runs" "$sub/resourceGroups/$NAME-runs"
give "aicert network" "$group"
give "aicert image reader" "$group/providers/Microsoft.Compute/galleries/$NAME"
give "aicert publisher" "$group" "$publisher" User
give "aicert publishing looker" "$sub" "$publisher" User
certs=$group/providers/Microsoft.Storage/storageAccounts/${STORE}certs
give "aicert store" "$certs/blobServices/default/containers/certificates"

cat <<END

Done. For the blocks:
  subscription    $SUBSCRIPTION
  group           $NAME-runs
  location        $LOCATION
  subnet          $group/providers/Microsoft.Network/virtualNetworks/$NAME/subnets/runs
  worker          $client
  store           https://${STORE}certs.blob.core.windows.net/certificates
For deployments/azure/publish.py, by the user $publisher:
  --gallery       $group/providers/Microsoft.Compute/galleries/$NAME
  --account       $group/providers/Microsoft.Storage/storageAccounts/${STORE}images
The worker's machine goes into the subnet worker and gets the identity $NAME-worker.
END
