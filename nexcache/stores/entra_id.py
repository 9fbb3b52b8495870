"""Entra ID's tokens as passwords, for Azure's managed servers; needs the extra `azure`."""

from typing import Final

from redis.auth.token_manager import RetryPolicy, TokenManagerConfig
from redis.credentials import CredentialProvider
from redis_entraid.cred_provider import create_from_default_azure_credential, create_from_managed_identity
from redis_entraid.identity_provider import ManagedIdentityIdType, ManagedIdentityType

_SCOPE: Final = "https://redis.azure.com/.default"
_RESOURCE: Final = "https://redis.azure.com/"
_CONFIG: Final = TokenManagerConfig(0.7, 0, 1000, RetryPolicy(1, 3))
"""A token is fetched again after seven tenths of its life; one request for it may take a second, and the lane asks
again by itself."""


def provider(*, managed: bool, client_id: str | None) -> CredentialProvider:
    """Make a provider: of the machine's managed identity, or of whatever credential the environment has.

    `client_id` names a user-assigned identity; without it the system-assigned one is used.
    """
    made: CredentialProvider
    if not managed:
        made = create_from_default_azure_credential((_SCOPE,), token_manager_config=_CONFIG)
    elif client_id:
        made = create_from_managed_identity(
            ManagedIdentityType.USER_ASSIGNED,
            _RESOURCE,
            ManagedIdentityIdType.CLIENT_ID,
            client_id,
            token_manager_config=_CONFIG,
        )
    else:
        made = create_from_managed_identity(
            ManagedIdentityType.SYSTEM_ASSIGNED, _RESOURCE, token_manager_config=_CONFIG
        )
    return made
