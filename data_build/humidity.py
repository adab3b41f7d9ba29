"""Water vapour against saturation: an emulator outside its domain gives more of it than air can hold."""

import numpy as np

from data_build.planets import Atmosphere

#: The most a record's mean relative humidity next to the surface may be: 1, and what half precision rounds.
RELATIVE_HUMIDITY_LIMIT = 1.05
#: A climate whose mean relative humidity next to the surface is above this, as the emulator gives it, is no candidate:
#: its distance from saturation is more than two standard deviations of the emulator's humidity (a standard deviation
#: is about half of the value). What lies between 1 and this is capped at saturation.
SUPERSATURATION_LIMIT = 2.0

_M_H2O, _M_N2, _M_CO2, _M_CH4 = 18.015, 28.013, 44.010, 16.043  # g mol-1
_FREEZING_K = 273.16

# IAPWS SR1-86(1992): Wagner & Pruß 1993, J. Phys. Chem. Ref. Data 22, 783, equation 1; 273.16 to 647.096 K.
_CRITICAL_K, _CRITICAL_PA = 647.096, 22.064e6
_LIQUID = (
    (1.0, -7.85951783),
    (1.5, 1.84408259),
    (3.0, -11.7866497),
    (3.5, 22.6807411),
    (4.0, -15.9618719),
    (7.5, 1.80122502),
)


def saturation_pressure_pa(temperature_k: np.ndarray) -> np.ndarray:
    """Vapour pressure in Pa over liquid water, and below 273.16 K over ice, at ``temperature_k`` of any shape.

    Liquid: Wagner & Pruß 1993 (IAPWS SR1-86), up to the critical point, beyond which there is no saturation: infinite.
    Ice: Murphy & Koop 2005, Q. J. R. Meteorol. Soc. 131, 1539, equation 7, above 110 K.
    """
    temperature = np.asarray(temperature_k, float)
    warm = np.clip(temperature, _FREEZING_K, _CRITICAL_K)
    tau = 1 - warm / _CRITICAL_K
    liquid = _CRITICAL_PA * np.exp(_CRITICAL_K / warm * sum(factor * tau**power for power, factor in _LIQUID))
    cold = np.clip(temperature, 110.0, _FREEZING_K)
    ice = np.exp(9.550426 - 5723.265 / cold + 3.53068 * np.log(cold) - 0.00728332 * cold)
    return np.where(temperature > _CRITICAL_K, np.inf, np.where(temperature >= _FREEZING_K, liquid, ice))


# Drawn climates have millions of cells: there the logarithm is interpolated between points 0.25 K apart (0.01%).
_GRID_K = np.arange(110.0, 647.0, 0.25)
_LOG_SATURATION = np.log(saturation_pressure_pa(_GRID_K))


def water_vmr(specific_humidity: np.ndarray, atmosphere: Atmosphere) -> np.ndarray:
    """Volume mixing ratio of water vapour at a specific humidity (kg of water a kg of moist air)."""
    moles = specific_humidity / _M_H2O
    return moles / (moles + (1 - specific_humidity) / _dry_molar_mass(atmosphere))


def relative_humidity(
    temperature_k: np.ndarray, specific_humidity: np.ndarray, pressure_pa: np.ndarray, atmosphere: Atmosphere
) -> np.ndarray:
    """Vapour pressure over that of saturation; the arguments are of shapes that go together."""
    vapour_pa = water_vmr(specific_humidity, atmosphere) * pressure_pa
    return vapour_pa / saturation_pressure_pa(temperature_k)


def capped(
    temperature_k: np.ndarray, specific_humidity: np.ndarray, pressure_pa: np.ndarray, atmosphere: Atmosphere
) -> np.ndarray:
    """The specific humidity, at most that of saturation: what is above it would condense."""
    saturation_pa = np.exp(np.interp(temperature_k, _GRID_K, _LOG_SATURATION))
    vmr = np.minimum(saturation_pa / pressure_pa, 1.0)
    water = vmr * _M_H2O
    return np.minimum(specific_humidity, water / (water + (1 - vmr) * _dry_molar_mass(atmosphere)))


def _dry_molar_mass(atmosphere: Atmosphere) -> float:
    rest = 1 - atmosphere.co2_vmr - atmosphere.ch4_vmr
    return _M_N2 * rest + _M_CO2 * atmosphere.co2_vmr + _M_CH4 * atmosphere.ch4_vmr
