"""Drives a running `sealblk kms serve` (fault injection on) through boto3: every operation and every error.

Environment:
  SEALBLK_KMS_ENDPOINT           http://127.0.0.1:PORT
  AWS_REGION                     region of the KMS
  SEALBLK_<P>_ARN, _KEY_ID, _SECRET   credentials, for P in ADMIN, PROVISIONER, HOST, AUDITOR
  SEALBLK_KMS_EVENTS             path of events.jsonl, to join request ids

Prints `N passed`; exits with 1 after a failure.
"""

import datetime
import json
import os
import sys
import time
import traceback
import urllib.request
import uuid

import boto3
import botocore.auth
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError

ENDPOINT = os.environ["SEALBLK_KMS_ENDPOINT"]
REGION = os.environ["AWS_REGION"]
QUICK = Config(retries={"max_attempts": 0}, connect_timeout=5, read_timeout=10)
HTTP_OF = {"KMSInternalException": 500, "DependencyTimeoutException": 500, "KeyUnavailableException": 500}


def arn(principal):
    return os.environ[f"SEALBLK_{principal.upper()}_ARN"]


def client(principal, service="kms", config=QUICK, **changes):
    settings = {
        "endpoint_url": ENDPOINT,
        "region_name": REGION,
        "aws_access_key_id": os.environ[f"SEALBLK_{principal.upper()}_KEY_ID"],
        "aws_secret_access_key": os.environ[f"SEALBLK_{principal.upper()}_SECRET"],
        "config": config,
    }
    settings.update(changes)
    return boto3.client(service, **settings)


def control(path, **body):
    request = urllib.request.Request(
        f"{ENDPOINT}/_control/{path}",
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json"},
        method="POST",
    )
    with urllib.request.urlopen(request, timeout=5) as answer:
        assert answer.status == 200


ADMIN, PROVISIONER, HOST, AUDITOR = (client(p) for p in ("admin", "provisioner", "host", "auditor"))
CONTEXT = {"volume": "v1", "Team": "Data"}


def refused(code, call, message=None, **parameters):
    """Makes a call that must fail with this code, and its HTTP status."""
    try:
        call(**parameters)
    except ClientError as error:
        response = error.response
        assert response["Error"]["Code"] == code, response
        assert response["ResponseMetadata"]["HTTPStatusCode"] == HTTP_OF.get(code, 400), response
        assert response["ResponseMetadata"]["RequestId"], response
        if message is not None:
            assert response["Error"]["Message"] == message, response
        return response
    raise AssertionError(f"{code} expected, and the call succeeded")


def key(**parameters):
    return ADMIN.create_key(**parameters)["KeyMetadata"]["Arn"]


def wrapped(key_id, context=None, length=64):
    return PROVISIONER.generate_data_key_without_plaintext(
        KeyId=key_id, NumberOfBytes=length, EncryptionContext=context or CONTEXT
    )


def grant(key_id, **changes):
    request = {
        "KeyId": key_id,
        "GranteePrincipal": arn("host"),
        "RetiringPrincipal": arn("provisioner"),
        "Operations": ["Decrypt"],
        "Constraints": {"EncryptionContextSubset": CONTEXT},
    }
    request.update(changes)
    return PROVISIONER.create_grant(**request)


def unwrap(key_id, blob, context=None, tokens=()):
    return HOST.decrypt(
        KeyId=key_id, CiphertextBlob=blob, EncryptionContext=context or CONTEXT, GrantTokens=list(tokens)
    )


# --- identity and signatures


def test_who_am_i():
    for principal in ("admin", "provisioner", "host", "auditor"):
        identity = client(principal, "sts").get_caller_identity()
        assert identity["Arn"] == arn(principal), identity
        assert identity["Account"] == arn(principal).split(":")[4], identity


def test_signatures_are_checked():
    refused("UnrecognizedClientException", client("host", aws_access_key_id="AKIAAAAAAAAAAAAAAAAA").list_keys)
    refused("InvalidSignatureException", client("host", aws_secret_access_key="wrong").list_keys)
    refused("InvalidSignatureException", client("host", region_name="eu-west-9").list_keys)
    unsigned = client("host", config=QUICK.merge(Config(signature_version=UNSIGNED)))
    refused("MissingAuthenticationTokenException", unsigned.list_keys)
    try:
        client("host", "sts", aws_secret_access_key="wrong").get_caller_identity()
        raise AssertionError("a bad signature passed")
    except ClientError as error:
        assert error.response["Error"]["Code"] == "SignatureDoesNotMatch", error.response


def test_an_old_signature_is_refused():
    late = client("admin")
    now = botocore.auth.get_current_datetime
    botocore.auth.get_current_datetime = lambda *a, **k: now(*a, **k) - datetime.timedelta(minutes=16)
    try:
        refused("InvalidSignatureException", late.list_keys)
    finally:
        botocore.auth.get_current_datetime = now


def test_unknown_operations_and_bad_bodies():
    refused("UnknownOperationException", ADMIN.list_resource_tags, KeyId=key())
    loose = client("admin", config=QUICK.merge(Config(parameter_validation=False)))
    refused("SerializationException", loose.describe_key, KeyId=7)
    refused("SerializationException", loose.generate_data_key, KeyId=key(), KeySpec="AES_256",
            EncryptionContext={"a": 1})


# --- keys and aliases


def test_life_of_a_key():
    made = ADMIN.create_key(Description="d")["KeyMetadata"]
    for name, value in {
        "Enabled": True, "KeyState": "Enabled", "KeySpec": "SYMMETRIC_DEFAULT", "KeyUsage": "ENCRYPT_DECRYPT",
        "Origin": "AWS_KMS", "KeyManager": "CUSTOMER", "Description": "d", "MultiRegion": False,
        "EncryptionAlgorithms": ["SYMMETRIC_DEFAULT"],
    }.items():
        assert made[name] == value, (name, made)
    assert len(made["CurrentKeyMaterialId"]) == 64
    arn_ = made["Arn"]
    state = lambda: PROVISIONER.describe_key(KeyId=arn_)["KeyMetadata"]["KeyState"]
    ADMIN.disable_key(KeyId=arn_)
    assert state() == "Disabled"
    ADMIN.enable_key(KeyId=made["KeyId"])
    assert state() == "Enabled"
    refused("KMSInvalidStateException", ADMIN.cancel_key_deletion, KeyId=arn_)
    refused("ValidationException", ADMIN.schedule_key_deletion, KeyId=arn_, PendingWindowInDays=31)
    answer = ADMIN.schedule_key_deletion(KeyId=arn_, PendingWindowInDays=7)
    wait = answer["DeletionDate"] - made["CreationDate"]
    assert answer["KeyState"] == "PendingDeletion" and wait.days == 7, answer
    refused("KMSInvalidStateException", ADMIN.enable_key, KeyId=arn_, message=f"{arn_} is pending deletion.")
    assert ADMIN.cancel_key_deletion(KeyId=arn_)["KeyId"] == arn_
    assert state() == "Disabled"


def test_a_key_past_its_date_is_gone():
    gone = key()
    ADMIN.schedule_key_deletion(KeyId=gone, PendingWindowInDays=7)
    control("clock", advance_s=7 * 86400 + 1)
    refused("NotFoundException", PROVISIONER.describe_key, KeyId=gone, message=f"Key '{gone}' does not exist")


def test_aliases():
    one, two = key(), key()
    name = f"alias/{uuid.uuid4()}"
    ADMIN.create_alias(AliasName=name, TargetKeyId=one)
    refused("AlreadyExistsException", ADMIN.create_alias, AliasName=name, TargetKeyId=two)
    refused("InvalidAliasNameException", ADMIN.create_alias, AliasName="alias/aws/x", TargetKeyId=one)
    refused("ValidationException", ADMIN.create_alias, AliasName="x", TargetKeyId=one)
    assert PROVISIONER.describe_key(KeyId=name)["KeyMetadata"]["Arn"] == one
    ADMIN.update_alias(AliasName=name, TargetKeyId=two)
    entry = AUDITOR.list_aliases(KeyId=two)["Aliases"][0]
    assert entry["AliasName"] == name and PROVISIONER.describe_key(KeyId=entry["AliasArn"])["KeyMetadata"]["Arn"] == two
    ADMIN.delete_alias(AliasName=name)
    refused("NotFoundException", PROVISIONER.describe_key, KeyId=name)


def test_lists_have_pages():
    made = {key() for _ in range(3)}
    pages = AUDITOR.get_paginator("list_keys").paginate(PaginationConfig={"PageSize": 2})
    assert made <= {entry["KeyArn"] for page in pages for entry in page["Keys"]}
    refused("InvalidMarkerException", AUDITOR.list_keys, Marker="a b")


def test_references_that_name_nothing():
    refused("NotFoundException", PROVISIONER.describe_key, KeyId="12345678-1234-1234-1234-123456789012")
    refused("InvalidArnException", PROVISIONER.describe_key, KeyId="arn:aws:kms:nowhere")


# --- data keys


def test_data_keys():
    it = key()
    for request, length in (
        ({"NumberOfBytes": 64}, 64), ({"NumberOfBytes": 1024}, 1024), ({"KeySpec": "AES_256"}, 32),
        ({"KeySpec": "AES_128"}, 16),
    ):
        answer = ADMIN.generate_data_key(KeyId=it, EncryptionContext=CONTEXT, **request)
        assert len(answer["Plaintext"]) == length and len(answer["CiphertextBlob"]) <= 6144
        opened = ADMIN.decrypt(CiphertextBlob=answer["CiphertextBlob"], EncryptionContext=CONTEXT)
        assert opened["Plaintext"] == answer["Plaintext"] and opened["KeyId"] == it
        assert opened["KeyMaterialId"] == answer["KeyMaterialId"]
        assert opened["EncryptionAlgorithm"] == "SYMMETRIC_DEFAULT"
    assert "Plaintext" not in wrapped(it)
    loose = client("admin", config=QUICK.merge(Config(parameter_validation=False)))
    for bad in ({"NumberOfBytes": 0}, {"NumberOfBytes": 1025}, {}, {"NumberOfBytes": 32, "KeySpec": "AES_256"},
                {"KeySpec": "AES_192"}):
        refused("ValidationException", loose.generate_data_key, KeyId=it, **bad)
    refused("DryRunOperationException", PROVISIONER.generate_data_key_without_plaintext, KeyId=it, NumberOfBytes=64,
            EncryptionContext=CONTEXT, DryRun=True,
            message="The request would have succeeded, but the DryRun option is set.")
    assert len(ADMIN.generate_random(NumberOfBytes=48)["Plaintext"]) == 48


def test_contexts_and_damage():
    it, other = key(), key()
    blob = ADMIN.encrypt(KeyId=it, Plaintext=b"secret", EncryptionContext={"ab": "c"})["CiphertextBlob"]
    assert ADMIN.decrypt(CiphertextBlob=blob, EncryptionContext={"ab": "c"})["Plaintext"] == b"secret"
    for wrong in ({}, {"a": "bc"}, {"AB": "c"}, {"ab": "c", "d": "e"}):
        refused("InvalidCiphertextException", ADMIN.decrypt, CiphertextBlob=blob, EncryptionContext=wrong)
    for at in range(0, len(blob), 7):
        bad = bytearray(blob)
        bad[at] ^= 1
        refused("InvalidCiphertextException", ADMIN.decrypt, KeyId=it, CiphertextBlob=bytes(bad),
                EncryptionContext={"ab": "c"})
    refused("IncorrectKeyException", ADMIN.decrypt, KeyId=other, CiphertextBlob=blob, EncryptionContext={"ab": "c"})
    refused("DryRunOperationException", ADMIN.decrypt, CiphertextBlob=blob, EncryptionContext={"ab": "c"}, DryRun=True)
    refused("InvalidCiphertextException", ADMIN.decrypt, CiphertextBlob=blob, DryRun=True)
    loose = client("admin", config=QUICK.merge(Config(parameter_validation=False)))
    refused("ValidationException", loose.encrypt, KeyId=it, Plaintext=b"x" * 4097)


def test_key_states():
    it = key()
    blob = wrapped(it)["CiphertextBlob"]
    token = grant(it)["GrantToken"]
    calls = (
        lambda: wrapped(it), lambda: unwrap(it, blob), lambda: grant(it),
        lambda: PROVISIONER.re_encrypt(CiphertextBlob=blob, SourceEncryptionContext=CONTEXT, DestinationKeyId=it),
    )
    ADMIN.disable_key(KeyId=it)
    for call in calls:
        refused("DisabledException", call, message=f"{it} is disabled.")
    ADMIN.schedule_key_deletion(KeyId=it)
    for call in calls:
        refused("KMSInvalidStateException", call, message=f"{it} is pending deletion.")
    assert len(PROVISIONER.list_grants(KeyId=it)["Grants"]) == 1
    PROVISIONER.retire_grant(GrantToken=token)
    external = key(Origin="EXTERNAL")
    refused("KMSInvalidStateException", wrapped, key_id=external, message=f"{external} is pending import.")


def test_other_kinds_of_keys_are_refused():
    for parameters in ({"KeySpec": "RSA_2048", "KeyUsage": "ENCRYPT_DECRYPT"},
                       {"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"}):
        refused("InvalidKeyUsageException", wrapped, key_id=key(**parameters))
    refused("UnsupportedOperationException", ADMIN.create_key, MultiRegion=True)


# --- rights and grants


def test_policies():
    it = key()
    blob = wrapped(it)["CiphertextBlob"]
    refused("AccessDeniedException", PROVISIONER.decrypt, CiphertextBlob=blob, EncryptionContext=CONTEXT)
    refused("AccessDeniedException", PROVISIONER.generate_data_key, KeyId=it, NumberOfBytes=64)
    refused("AccessDeniedException", AUDITOR.encrypt, KeyId=it, Plaintext=b"x")
    PROVISIONER.encrypt(KeyId=it, Plaintext=b"x")
    refused("AccessDeniedException", HOST.describe_key, KeyId=it)
    refused("AccessDeniedException", AUDITOR.disable_key, KeyId=it)
    response = refused("AccessDeniedException", unwrap, key_id=it, blob=blob)
    start = f"User: {arn('host')} is not authorized to perform: kms:Decrypt on resource: {it} because no "
    assert response["Error"]["Message"].startswith(start), response


def test_key_policies():
    it = key()
    assert ADMIN.list_key_policies(KeyId=it)["PolicyNames"] == ["default"]
    told = json.loads(ADMIN.get_key_policy(KeyId=it, PolicyName="default")["Policy"])
    account = arn("admin").split(":")[4]
    assert told["Statement"][0]["Principal"] == {"AWS": f"arn:aws:iam::{account}:root"}, told
    policy = json.dumps({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Principal": {"AWS": arn("admin")}, "Action": "kms:*", "Resource": "*"},
        {"Effect": "Allow", "Principal": {"AWS": arn("provisioner")}, "Resource": "*",
         "Action": "kms:GenerateDataKeyWithoutPlaintext",
         "Condition": {"StringEquals": {"kms:EncryptionContext:volume": "v1"}}},
    ]})
    ADMIN.put_key_policy(KeyId=it, PolicyName="default", Policy=policy)
    assert ADMIN.get_key_policy(KeyId=it)["Policy"] == policy
    wrapped(it)
    refused("AccessDeniedException", wrapped, key_id=it, context={"volume": "v2"})
    refused("AccessDeniedException", PROVISIONER.describe_key, KeyId=it)
    for bad in ("{}", policy.replace("StringEquals", "StringEqual"), policy.replace("kms:*", "kms:Get*")):
        refused("MalformedPolicyDocumentException", ADMIN.put_key_policy, KeyId=it, Policy=bad)
    refused("AccessDeniedException", PROVISIONER.put_key_policy, KeyId=it, Policy=policy)
    made = ADMIN.create_key(Policy=policy)["KeyMetadata"]["Arn"]
    assert ADMIN.get_key_policy(KeyId=made)["Policy"] == policy


def test_a_grant_opens_its_volume_alone():
    it = key()
    blob, other = wrapped(it)["CiphertextBlob"], wrapped(it, {"volume": "v2"})["CiphertextBlob"]
    refused("DryRunOperationException", grant, key_id=it, DryRun=True)
    refused("AccessDeniedException", unwrap, key_id=it, blob=blob)
    made = grant(it, Name="v1:1")
    assert len(made["GrantId"]) == 64
    assert len(unwrap(it, blob, tokens=[made["GrantToken"]])["Plaintext"]) == 64
    assert len(unwrap(it, blob)["Plaintext"]) == 64
    refused("AccessDeniedException", unwrap, key_id=it, blob=other, context={"volume": "v2"})
    again = grant(it, Name="v1:1")
    assert again["GrantId"] == made["GrantId"] and again["GrantToken"] != made["GrantToken"]
    refused("DryRunOperationException", HOST.decrypt, KeyId=it, EncryptionContext=CONTEXT, DryRun=True,
            **({"DryRunModifiers": ["IGNORE_CIPHERTEXT"]} if has_modifiers() else {"CiphertextBlob": blob}))
    entry = PROVISIONER.list_grants(KeyId=it)["Grants"][0]
    assert entry["GranteePrincipal"] == arn("host") and entry["Constraints"] == {"EncryptionContextSubset": CONTEXT}
    assert entry["Name"] == "v1:1" and entry["RetiringPrincipal"] == arn("provisioner")


def has_modifiers():
    shape = HOST.meta.service_model.operation_model("Decrypt").input_shape
    return "DryRunModifiers" in shape.members and "CiphertextBlob" not in shape.required_members


def test_grants_end():
    it = key()
    blob = wrapped(it)["CiphertextBlob"]
    by_token, by_id, revoked = grant(it), grant(it), grant(it)
    refused("AccessDeniedException", HOST.retire_grant, GrantToken=by_token["GrantToken"])
    refused("DryRunOperationException", PROVISIONER.retire_grant, GrantToken=by_token["GrantToken"], DryRun=True)
    PROVISIONER.retire_grant(GrantToken=by_token["GrantToken"])
    refused("InvalidGrantTokenException", PROVISIONER.retire_grant, GrantToken=by_token["GrantToken"])
    refused("InvalidGrantTokenException", unwrap, key_id=it, blob=blob, tokens=[by_token["GrantToken"]])
    PROVISIONER.retire_grant(KeyId=it, GrantId=by_id["GrantId"])
    refused("NotFoundException", PROVISIONER.retire_grant, KeyId=it, GrantId=by_id["GrantId"])
    refused("InvalidGrantIdException", PROVISIONER.retire_grant, KeyId=it, GrantId="zz")
    refused("ValidationException", PROVISIONER.retire_grant)
    PROVISIONER.revoke_grant(KeyId=it, GrantId=revoked["GrantId"])
    refused("NotFoundException", PROVISIONER.revoke_grant, KeyId=it, GrantId=revoked["GrantId"])
    refused("AccessDeniedException", unwrap, key_id=it, blob=blob)
    refused("InvalidGrantTokenException", unwrap, key_id=it, blob=blob, tokens=["forged"])


def test_grants_take_time():
    it = key()
    blob = wrapped(it)["CiphertextBlob"]
    control("grants", delay_ms=60_000)
    try:
        made = grant(it)
        refused("AccessDeniedException", unwrap, key_id=it, blob=blob)
        unwrap(it, blob, tokens=[made["GrantToken"]])
        control("clock", advance_s=61)
        unwrap(it, blob)
        PROVISIONER.revoke_grant(KeyId=it, GrantId=made["GrantId"])
        unwrap(it, blob)
        control("clock", advance_s=61)
        refused("AccessDeniedException", unwrap, key_id=it, blob=blob)
    finally:
        control("grants", delay_ms=0)


def test_grant_limits():
    it = key()
    nine = {f"k{i}": "v" for i in range(9)}
    refused("ValidationException", grant, key_id=it, Constraints={"EncryptionContextSubset": nine})
    refused("ValidationException", grant, key_id=it, Constraints={"EncryptionContextSubset": {"k": "v" * 384}})
    loose = client("provisioner", config=QUICK.merge(Config(parameter_validation=False)))
    refused("ValidationException", loose.create_grant, KeyId=it, GranteePrincipal=arn("host"), Operations=["Decrypt"],
            Name="a b")
    refused("InvalidArnException", grant, key_id=it, GranteePrincipal="nobody")
    blob, token = wrapped(it)["CiphertextBlob"], grant(it)["GrantToken"]
    unwrap(it, blob, tokens=[token] * 10)
    loose = client("host", config=QUICK.merge(Config(parameter_validation=False)))
    refused("ValidationException", loose.decrypt, KeyId=it, CiphertextBlob=blob, EncryptionContext=CONTEXT,
            GrantTokens=[token] * 11)
    assert ADMIN.list_retirable_grants(RetiringPrincipal=arn("provisioner"), Limit=1)["Grants"]


# --- rotation and moving


def test_rotation():
    it = key()
    old = wrapped(it)
    grant(it)
    before = unwrap(it, old["CiphertextBlob"])["Plaintext"]
    assert ADMIN.rotate_key_on_demand(KeyId=it)["KeyId"] == it
    new = wrapped(it)
    assert new["KeyMaterialId"] != old["KeyMaterialId"]
    assert PROVISIONER.describe_key(KeyId=it)["KeyMetadata"]["CurrentKeyMaterialId"] == new["KeyMaterialId"]
    assert unwrap(it, old["CiphertextBlob"])["Plaintext"] == before
    assert AUDITOR.list_key_rotations(KeyId=it)["Rotations"][0]["RotationType"] == "ON_DEMAND"
    ADMIN.enable_key_rotation(KeyId=it, RotationPeriodInDays=90)
    status = AUDITOR.get_key_rotation_status(KeyId=it)
    assert status["KeyRotationEnabled"] and status["RotationPeriodInDays"] == 90
    ADMIN.disable_key_rotation(KeyId=it)
    assert not AUDITOR.get_key_rotation_status(KeyId=it)["KeyRotationEnabled"]


def test_reencrypt():
    one, two = key(), key()
    old = ADMIN.generate_data_key(KeyId=one, NumberOfBytes=64, EncryptionContext=CONTEXT)
    request = {"CiphertextBlob": old["CiphertextBlob"], "SourceEncryptionContext": CONTEXT, "DestinationKeyId": two,
               "DestinationEncryptionContext": {"volume": "v2"}}
    refused("DryRunOperationException", PROVISIONER.re_encrypt, DryRun=True, **request)
    new = PROVISIONER.re_encrypt(**request)
    assert (new["SourceKeyId"], new["KeyId"]) == (one, two)
    opened = ADMIN.decrypt(KeyId=two, CiphertextBlob=new["CiphertextBlob"], EncryptionContext={"volume": "v2"})
    assert opened["Plaintext"] == old["Plaintext"]
    refused("IncorrectKeyException", PROVISIONER.re_encrypt, SourceKeyId=two, **request)
    refused("AccessDeniedException", HOST.re_encrypt, **request)
    request["SourceEncryptionContext"] = {}
    refused("InvalidCiphertextException", PROVISIONER.re_encrypt, **request)


# --- ordered faults

ERRORS = """ThrottlingException KMSInternalException DependencyTimeoutException KeyUnavailableException
DisabledException KMSInvalidStateException NotFoundException AccessDeniedException InvalidGrantTokenException
InvalidGrantIdException LimitExceededException InvalidCiphertextException IncorrectKeyException
InvalidKeyUsageException UnsupportedOperationException InvalidArnException ValidationException ExpiredTokenException
UnrecognizedClientException InvalidSignatureException""".split()


def test_every_error_can_be_ordered():
    it = key()
    for code in ERRORS:
        control("faults", operation="DescribeKey", code=code, status=HTTP_OF.get(code, 400), message="ordered")
        refused(code, PROVISIONER.describe_key, KeyId=it, message="ordered")
    PROVISIONER.describe_key(KeyId=it)


def test_faults_are_counted_retried_delayed_and_forgotten():
    it = key()
    control("faults", operation="DescribeKey", code="KMSInternalException", status=500, times=2)
    patient = client("provisioner", config=Config(retries={"max_attempts": 4, "mode": "standard"}))
    answer = patient.describe_key(KeyId=it)
    assert answer["ResponseMetadata"]["RetryAttempts"] == 2, answer
    control("faults", operation="DescribeKey", delay_ms=400)
    start = time.monotonic()
    PROVISIONER.describe_key(KeyId=it)
    assert time.monotonic() - start >= 0.4
    control("faults", operation="DescribeKey", garbage=True)
    try:
        assert "KeyMetadata" not in PROVISIONER.describe_key(KeyId=it), "garbage was understood"
    except ResponseParserError:
        pass
    control("faults", operation="DescribeKey", code="DisabledException", times=100)
    control("reset")
    PROVISIONER.describe_key(KeyId=it)
    control("faults", operation="GetCallerIdentity", code="Throttling", status=400, message="ordered")
    refused("Throttling", client("host", "sts").get_caller_identity, message="ordered")


def test_throttling():
    it = key()
    control("rate", operation="DescribeKey", per_second=2)
    try:
        PROVISIONER.describe_key(KeyId=it)
        PROVISIONER.describe_key(KeyId=it)
        refused("ThrottlingException", PROVISIONER.describe_key, KeyId=it, message="Rate exceeded")
        patient = client("provisioner", config=Config(retries={"max_attempts": 10, "mode": "standard"}))
        patient.describe_key(KeyId=it)
    finally:
        control("reset")


def test_events_join_with_answers():
    path = os.environ["SEALBLK_KMS_EVENTS"]
    answer = PROVISIONER.describe_key(KeyId=key())
    with open(path, encoding="utf-8") as log:
        ids = {json.loads(line)["requestID"] for line in log}
    assert answer["ResponseMetadata"]["RequestId"] in ids


def main():
    tests = [value for name, value in sorted(globals().items()) if name.startswith("test_")]
    failed = 0
    for test in tests:
        try:
            control("reset")
            test()
        except Exception:
            failed += 1
            print(f"FAILED {test.__name__}\n{traceback.format_exc()}", file=sys.stderr)
    print(f"{len(tests) - failed} passed" + (f", {failed} failed" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
